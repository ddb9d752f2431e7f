-- Nothing was used: everything goes back, once; an unknown id leaves a tombstone.
-- KEYS: epoch, reservation, leases. ARGV: nonce, ended_ms, tombstone_ms.
-- Reply: {now_ms, 1 when it changed something}.

local epoch = the_epoch(redis.call('GET', KEYS[1]), ARGV[1])
local raw = redis.call('GET', KEYS[2])
if not raw then
  mark('tombstone', nil, ARGV[3])
  return {now_ms, 1}
end

local reservation = cmsgpack.unpack(raw)
if reservation.state ~= 'held' and reservation.state ~= 'expired' then return {now_ms, 0} end
local entries = cmsgpack.unpack(reservation.entries)
if reservation.state == 'held' then free(reservation, entries) end
if reservation.epoch == epoch then
  for i = 1, #entries, WIDTH do
    if entries[i + 1] == 'bucket' and entries[i + 2] > 0 then
      add(entries[i], entries[i + 2], entries[i + 3], entries[i + 4])
    end
  end
end
mark('released', reservation.reply, ARGV[2])
return {now_ms, 1}
