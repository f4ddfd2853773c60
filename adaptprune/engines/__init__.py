"""What answers a prompt: one engine per runtime. Front ends talk to engines, never to models."""
