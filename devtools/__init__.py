"""Tools for who works on Deltaguard; nothing here is shipped."""
