-- The name is free again, if this request holds it.
-- KEYS: the name's. ARGV: request id. Reply: {now_ms, 1 when it did}.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {now_ms, 0} end
redis.call('DEL', KEYS[1])
return {now_ms, 1}
