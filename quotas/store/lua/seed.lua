-- Levels become what SQL says, once an epoch.
-- KEYS: epoch. ARGV: nonce, epoch meant, seeds (flat: scope, field, "balance" or "quota", period id,
-- level), counted ids, counted_ms. Reply: {now_ms, 1, or 0 when the tag is of another epoch}.
--
-- A level that is not seeded yet counts from zero what was settled in this epoch. That is added to
-- the seed, less what the counted ids took: SQL has it.

local epoch = the_epoch(redis.call('GET', KEYS[1]), ARGV[1])
if epoch ~= ARGV[2] then return {now_ms, 0} end
local seeds, counted = cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4])
local fresh = {} -- levels that are seeded now, not before: "scope\nfield" -> true
for i = 1, #seeds, 5 do
  local scope, field, money = seeds[i], seeds[i + 1], string.find(seeds[i + 1], ':money', 1, true)
  local got = redis.call('HMGET', prefix .. 's:' .. scope, '~', field)
  local value
  if seeds[i + 2] == 'balance' then
    local purse = purse_of(got[2], epoch)
    if purse[4] ~= 1 then
      purse[1], purse[4] = purse[1] + seeds[i + 4], 1
      value = purse
    end
  else
    local tally = tally_of(got[2], epoch, money)
    if tally[8] ~= 1 then
      local slot = begin_slot(tally, seeds[i + 3])
      tally[slot + 1] = money and tally[slot + 1] + seeds[i + 4] or seeds[i + 4]
      tally[8] = 1
      value = tally
    end
  end
  if value then
    fresh[scope .. '\n' .. field] = money
    write(scope, {field, cmsgpack.pack(value)}, LONGEST_MS, got[1])
  end
end
if not next(fresh) then return {now_ms, 1} end

for _, id in ipairs(counted) do
  local key = prefix .. 'r:' .. id
  local raw = redis.call('GET', key)
  local state, held_epoch, owner, reply, held_spec, held_amounts, how
  if raw then state, held_epoch, owner, reply, held_spec, held_amounts, how = cmsgpack.unpack(raw) end
  if not raw or (held_epoch ~= epoch and (state == 'held' or state == 'expired')) then
    mark(key, 'counted', reply, ARGV[5], epoch)
  elseif state == 'held' or state == 'expired' then
    -- Its rates are still to be settled, its money is not.
    local spec, reserved = {cmsgpack.unpack(held_spec)}, cmsgpack.unpack(held_amounts)
    local scopes, ends, names = unpack(spec)
    local from, money = 1, {}
    for s = 1, #scopes do
      for n = from, ends[s] do
        money[n] = 0
        if fresh[scopes[s] .. '\n' .. names[n]] then money[n], how[n] = how[n], 0 end
      end
      from = ends[s] + 1
    end
    move(spec, reserved, zeros(#names), money, epoch)
    redis.call('SET', key,
      cmsgpack.pack(state, held_epoch, owner, reply, held_spec, held_amounts, how), 'KEEPTTL')
  elseif state == 'settled' and held_epoch == epoch and held_spec then
    local early = held_spec -- a mark keeps it there
    for i = 1, #early, 4 do
      local scope, field = early[i], early[i + 1]
      if fresh[scope .. '\n' .. field] then
        local got = redis.call('HMGET', prefix .. 's:' .. scope, '~', field)
        local value
        if early[i + 2] == '' then
          value = purse_of(got[2], epoch)
          value[1] = value[1] + early[i + 3]
        else
          value = tally_of(got[2], epoch, true)
          local slot = begin_slot(value, early[i + 2])
          value[slot + 1] = value[slot + 1] - early[i + 3]
        end
        write(scope, {field, cmsgpack.pack(value)}, LONGEST_MS, got[1])
      end
    end
    mark(key, 'settled', reply, ARGV[5], epoch)
  end
end
return {now_ms, 1}
