-- Nothing was used: everything goes back, once; an unknown id leaves a tombstone.
-- KEYS: epoch, reservation, leases. ARGV: nonce, ended_ms, tombstone_ms.
-- Reply: {now_ms, 1 when it changed something}.

local epoch = the_epoch(redis.call('GET', KEYS[1]), ARGV[1])
local raw = redis.call('GET', KEYS[2])
if not raw then
  mark('tombstone', nil, ARGV[3])
  return {now_ms, 1}
end

local reservation = load(raw)
if reservation.state ~= 'held' and reservation.state ~= 'expired' then return {now_ms, 0} end
if reservation.state == 'held' then free(reservation) end
if reservation.epoch == epoch then
  for _, entry in ipairs(reservation.entries) do
    if entry[2] == 'bucket' and entry[3] > 0 then add(entry, entry[3]) end
  end
end
mark('released', reservation.reply, ARGV[2])
return {now_ms, 1}
