"""Text generation: requests in, text out. :class:`nybble.LLM` is the front door,
:class:`engine.Engine` the loop."""
