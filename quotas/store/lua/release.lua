-- Nothing was used: everything goes back, once; an unknown id leaves a tombstone.
-- KEYS: epoch, reservation, leases. ARGV: nonce, ended_ms, tombstone_ms.
-- Reply: {now_ms, 1 when it changed something}.

local got = redis.call('MGET', KEYS[1], KEYS[2])
local epoch = the_epoch(got[1], ARGV[1])
if not got[2] then
  mark(KEYS[2], 'tombstone', nil, ARGV[3])
  return {now_ms, 1}
end

local state, held_epoch, _, reply, held_spec, held_amounts, how = cmsgpack.unpack(got[2])
if state ~= 'held' and state ~= 'expired' then return {now_ms, 0} end
if held_epoch == epoch then
  local spec = {cmsgpack.unpack(held_spec)}
  local kinds = spec[4]
  if state == 'expired' then
    for n = 1, #kinds do
      if kinds[n] == 'concurrency' then how[n] = 0 end
    end
  end
  move(spec, cmsgpack.unpack(held_amounts), zeros(#kinds), how, epoch)
end
mark(KEYS[2], 'released', reply, ARGV[2], epoch)
return {now_ms, 1}
