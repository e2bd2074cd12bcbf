"""From other people's files to tiles with buildings: `vectors` and `cityjson` read layers, `tiles` cuts them."""
