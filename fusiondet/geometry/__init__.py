"""From masks to outlines: pure functions on arrays and shapes, in pixels unless a name says otherwise."""
