"""Rewriting what is safe to rewrite: own connections become the injected pools'. Needs libcst (extra ``migrate``)."""

from app.migration.rewriting.plan import Refusal, Rewrite, plan

__all__ = ["Refusal", "Rewrite", "plan"]
