"""What several codecs ship: functions in plain torch that are copied into `load.py`."""

import torch


def bit_packed(codes, bits):
    """(ceil(n bits / 8),) uint8: codes (n,) one after another, the lowest bit first."""
    single = (codes[:, None] >> torch.arange(bits, device=codes.device)) & 1
    stream = torch.nn.functional.pad(single.flatten(), (0, -single.numel() % 8))
    return (stream.view(-1, 8) << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)


def bit_unpacked(stream, bits, num):
    """The `num` codes (num,) int64 of a stream of bytes (n,)."""
    single = (stream[:, None] >> torch.arange(8, device=stream.device)) & 1
    used = single.flatten()[: num * bits].view(num, bits)
    return (used.long() << torch.arange(bits, device=stream.device)).sum(1)


def in_parts(function, rows, numbers):
    """function(rows), in parts of as many rows (B, ...) as `numbers` of each fit into 128 MB."""
    most = max(1, 2**25 // numbers)
    if len(rows) <= most:
        return function(rows)
    return torch.cat([function(part) for part in rows.split(most)])


def resized(images, size):
    """Images (B, C, h, w) resized to (B, C, *size), bilinearly."""
    rows = line_weights(images.shape[2], size[0], images)
    columns = line_weights(images.shape[3], size[1], images)
    return rows @ images @ columns.T


def line_weights(old, new, like):
    """The matrix (new, old) of linear interpolation along one side."""
    line = torch.arange(new, device=like.device, dtype=like.dtype)
    centres = (line + 0.5) * (old / new) - 0.5
    read_at = centres.clamp(0, old - 1).unsqueeze(1)
    old_line = torch.arange(old, device=like.device)
    distance = (read_at - old_line).abs()
    return (1 - distance).clamp(min=0)
