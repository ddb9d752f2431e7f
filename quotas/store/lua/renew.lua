-- A living owner's lease of one tag. KEYS: epoch, reservation (unused), leases.
-- ARGV: owner, lease_ms, keep_ms. Owners whose lease ran out long ago are forgotten.
-- Reply: {now_ms, 1}.

redis.call('ZADD', KEYS[3], int(now_ms + ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', int(now_ms - ARGV[2]))
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return {now_ms, 1}
