-- All charges or none, in one step; a second call with the id returns the first verdict.
-- KEYS: epoch, reservation, leases, scopes. ARGV: nonce, owner, id, ttl_ms, lease_ms, leases_ms,
-- spec, amounts. Reply: {now_ms, 1 | 0 | -1, epoch, binding row, retry_after_ms, reason, shadowed
-- rows, remaining, reset_ms, ...}; -1: the id was ended before it was reserved. A refusal leaves
-- nothing behind but what flowed into levels.

local held = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
local epoch = the_epoch(held[1], ARGV[1])
local owner = ARGV[2]

if held[2] then
  local _, _, _, reply = cmsgpack.unpack(held[2])
  if not reply then return {now_ms, -1} end
  reply[1] = now_ms
  return reply
end

local spec = {cmsgpack.unpack(ARGV[7])}
local amounts = cmsgpack.unpack(ARGV[8])
local leases = leases_of(held[3])
local levels, kept, chosen, ends_at, skip = {}, {}, {}, {}, {}
local binding, wait, reason, lives =
  judge(spec, amounts, epoch, owner, leases, levels, kept, chosen, ends_at, skip)
local admitted = binding == 0
local scopes, ends, names, kinds, capacities, rates = unpack(spec)
local reply = {
  now_ms, admitted and 1 or 0, epoch, binding - 1, wait, reason,
  next(skip) and named(skip, #names) or '',
}
local how, from, holds = {}, 1, false
for s = 1, #scopes do
  local fields, keep_ms = {}, 0
  for n = from, ends[s] do
    local kind, amount, level = kinds[n], amounts[n], levels[n]
    local takes = admitted and amount > 0 and not skip[n]
    local value, lasts_ms
    how[n] = admitted and not skip[n] and (kind == 'quota' and chosen[n] or 1) or 0
    if kind == 'bucket' then
      local capacity, rate = capacities[n], rates[n]
      if takes then level = level - amount * TICKS end
      local full_in_ms = reset_ms(level, capacity, rate)
      reply[2 * n + 6], reply[2 * n + 7] = floor_div(level, TICKS), full_in_ms
      -- Written when units are taken, when the limit's figures changed, and when the clock stepped
      -- back; else what flowed in is found again from the old value.
      if takes or kept[n] then
        value = struct.pack(BUCKET, level, now_ms, capacity, rate)
        lasts_ms = bucket_keep_ms(full_in_ms, rate)
      end
    else
      if kind == 'concurrency' or (kind == 'quota' and not chosen[n]) then how[n] = 0 end
      if takes then
        level = level - amount
        local state = kept[n]
        if kind == 'concurrency' then
          how[n] = take_holds(state, chosen[n], owner, amount, ARGV[3])
          holds, lasts_ms = true, tonumber(ARGV[4])
        elseif kind == 'quota' then
          local slot = begin_slot(state, chosen[n])
          state[slot + 2] = state[slot + 2] + amount
          lasts_ms = math.min(LONGEST_MS, ends_at[n] - now_ms + DAY_MS)
        else
          state[2] = state[2] + amount
          lasts_ms = LONGEST_MS
        end
        value = cmsgpack.pack(state)
      end
      local ends_ms = ends_at[n]
      reply[2 * n + 6] = level
      reply[2 * n + 7] = ends_ms and ends_ms < FOREVER_MS and ends_ms - now_ms or 0
    end
    if value then
      fields[#fields + 1], fields[#fields + 2] = names[n], value
      keep_ms = math.max(keep_ms, lasts_ms)
    end
  end
  write(scopes[s], fields, keep_ms, lives[s])
  from = ends[s] + 1
end

if holds then keep_lease(leases, owner, tonumber(ARGV[5]), ARGV[6]) end
if admitted then
  redis.call('SET', KEYS[2], cmsgpack.pack('held', epoch, owner, reply, ARGV[7], ARGV[8], how),
    'PX', ARGV[4])
end
return reply
