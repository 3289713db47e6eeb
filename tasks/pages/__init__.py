"""The page that gets forwarded: figures, tables, gallery and their layout in one self-contained HTML file."""
