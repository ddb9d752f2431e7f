-- Holds go free and nothing goes back; a later settle or release still counts, once.
-- KEYS: epoch, reservation, leases. ARGV: nonce. Reply: {now_ms, 1 when it changed something}.

local got = redis.call('MGET', KEYS[1], KEYS[2])
if not got[2] then return {now_ms, 0} end
local epoch = the_epoch(got[1], ARGV[1])
local state, held_epoch, owner, reply, held_spec, held_amounts, how = cmsgpack.unpack(got[2])
if state ~= 'held' then return {now_ms, 0} end
if held_epoch == epoch then
  local spec, amounts = {cmsgpack.unpack(held_spec)}, cmsgpack.unpack(held_amounts)
  move(spec, amounts, zeros(#amounts), how, epoch, 'concurrency')
end
redis.call('SET', KEYS[2],
  cmsgpack.pack('expired', held_epoch, owner, reply, held_spec, held_amounts, how), 'KEEPTTL')
return {now_ms, 1}
