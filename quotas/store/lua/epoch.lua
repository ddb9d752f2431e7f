-- The tag's epoch, begun where there is none. KEYS: epoch. ARGV: nonce. Reply: {now_ms, epoch}.

return {now_ms, the_epoch(redis.call('GET', KEYS[1]), ARGV[1])}
