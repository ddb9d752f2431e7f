-- A seeded balance moves by so much, once an id. KEYS: epoch, the adjustment's mark.
-- ARGV: nonce, epoch meant, scope, field, delta, kept_ms.
-- Reply: {now_ms, 1, or 0 when the tag is of another epoch or the balance not seeded}.

local got = redis.call('MGET', KEYS[1], KEYS[2])
local epoch = the_epoch(got[1], ARGV[1])
if epoch ~= ARGV[2] then return {now_ms, 0} end
if got[2] then return {now_ms, 1} end
local found = redis.call('HMGET', prefix .. 's:' .. ARGV[3], '~', ARGV[4])
local purse = purse_of(found[2], epoch)
if purse[4] ~= 1 then return {now_ms, 0} end
purse[1] = purse[1] + ARGV[5]
write(ARGV[3], {ARGV[4], cmsgpack.pack(purse)}, LONGEST_MS, found[1])
mark(KEYS[2], 'adjusted', nil, ARGV[6], epoch)
return {now_ms, 1}
