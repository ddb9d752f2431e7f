-- True amounts replace the reserved ones, once.
-- KEYS: epoch, reservation, leases, then one a charge.
-- ARGV: nonce, the settlement's epoch, entries charged (MessagePack), ended_ms, charged_in_full_ms.
-- Reply: {now_ms, 1 when it changed something}.

local epoch = the_epoch(redis.call('GET', KEYS[1]), ARGV[1])
local raw = redis.call('GET', KEYS[2])

-- This life of the data never held what was reserved: nothing to give back, all of it to take.
local function charge_in_full()
  local charged = cmsgpack.unpack(ARGV[3])
  for i = 1, #charged, WIDTH do
    if charged[i + 1] == 'bucket' and charged[i + 2] > 0 then
      add(charged[i], -charged[i + 2], charged[i + 3], charged[i + 4])
    end
  end
end

if not raw then
  if ARGV[2] == epoch then return {now_ms, 0} end
  charge_in_full()
  mark('settled', nil, ARGV[5])
  return {now_ms, 1}
end

local reservation = cmsgpack.unpack(raw)
if reservation.state ~= 'held' and reservation.state ~= 'expired' then return {now_ms, 0} end
local entries = cmsgpack.unpack(reservation.entries)
if reservation.state == 'held' then free(reservation, entries) end
if reservation.epoch ~= epoch then
  charge_in_full()
  mark('settled', reservation.reply, ARGV[5])
  return {now_ms, 1}
end

local charged = cmsgpack.unpack(ARGV[3])
local exact, loose = {}, {}
for i = 1, #charged, WIDTH do
  exact[charged[i]] = charged[i + 2]
  if not loose[charged[i + 5]] then loose[charged[i + 5]] = charged[i + 2] end
end
for i = 1, #entries, WIDTH do
  local reserved = entries[i + 2]
  local actual = exact[entries[i]] or loose[entries[i + 5]] or reserved
  if entries[i + 1] == 'bucket' and actual ~= reserved then
    add(entries[i], reserved - actual, entries[i + 3], entries[i + 4])
  end
end
mark('settled', reservation.reply, ARGV[4])
return {now_ms, 1}
