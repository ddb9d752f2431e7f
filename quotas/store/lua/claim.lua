-- A name belongs to the request that claimed it first, for a time.
-- KEYS: the name's. ARGV: request id, ms. Reply: {now_ms, the id that holds it}.

local held = redis.call('GET', KEYS[1])
if held then return {now_ms, held} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {now_ms, ARGV[1]}
