"""The files of a vector index: header, id map, links, vectors."""
