"""Other people's logs and tables as ordinary records, `source: imported`. What a source does not tell stays null."""
