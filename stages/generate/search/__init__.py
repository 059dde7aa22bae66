"""Search as a tool: a corpus folder, its BM25 index, a server that speaks as Search-R1's retriever
does, and the tool that asks it."""
