"""Ask this folder: index its text and source files and answer questions about them, with every connection injected."""
