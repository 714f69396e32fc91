"""Guessing languages."""

import pytest

from app.demo.keywords import tokens
from app.demo.languages import Kind, kind_of, natural_language, programming_language


@pytest.mark.parametrize(
    ("path", "text", "language", "kind"),
    [
        ("docs/zmq.md", "", "markdown", Kind.MARKUP),
        ("guide.rst", "", "restructuredtext", Kind.MARKUP),
        ("app/pool.PY", "", "python", Kind.SOURCE),
        ("Makefile", "", "makefile", Kind.SOURCE),
        ("LICENSE", "", "text", Kind.TEXT),
        ("notes.txt", "", "text", Kind.TEXT),
        ("data.json", "", "json", Kind.TEXT),
        (".ci/run", "#!/usr/bin/env bash\n", "shell", Kind.SOURCE),
        ("tool", "#!/usr/bin/python3.11 -u\n", "python", Kind.SOURCE),
        ("mystery.xyz", "text", "unknown", Kind.TEXT),
    ],
)
def test_name_and_first_line_tell_the_programming_language(path: str, text: str, language: str, kind: Kind) -> None:
    """A file's suffix or name decides, and where it says nothing the interpreter in its first line."""
    assert language == programming_language(path, text)
    assert kind is kind_of(language)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The pool hands out a connection for one call and takes it back when the call has ended."),
        ("de", "Der Pool gibt die Verbindung für einen Aufruf aus und nimmt sie zurück, wenn er zu Ende ist."),
        ("fr", "Le pool prête une connexion pour un appel et la reprend lorsque cet appel est fini, avec les autres."),
        ("es", "El fondo presta una conexión para cada llamada y la recupera cuando los trabajos terminan por hoy."),
        ("it", "Il gruppo presta una connessione per ogni chiamata e la riprende quando questa chiamata è finita."),
        (
            "pt",
            "O conjunto empresta uma conexão para cada chamada e não a perde quando os trabalhos terminam mais cedo.",
        ),
        ("nl", "De pool geeft een verbinding uit voor het gesprek en neemt deze terug als het gesprek is beëindigd."),
        ("unknown", "3.14 2.71 1.41 1.73 lambda xs"),
        ("unknown", ""),
    ],
)
def test_common_words_tell_the_natural_language(code: str, text: str) -> None:
    """A sentence is recognised by its function words; numbers have no language."""
    assert code == natural_language(tokens(text))
