"""The API of OpenAI for language models: what is asked, what is answered, and what went wrong."""
