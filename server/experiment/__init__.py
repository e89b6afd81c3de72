"""Leave one hospital out: what is trained and asked, doing it, and what was found."""
