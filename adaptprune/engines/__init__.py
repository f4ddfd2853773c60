"""What answers a prompt: one engine per runtime. Front ends (command line, servers) talk to engines, never to models."""
