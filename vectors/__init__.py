"""What a steering vector is, where it is kept and how it is made. Knows torch; never imports `server`."""
