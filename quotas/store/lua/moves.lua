-- Levels moved from what was reserved to what was true: shared by settle, release, expire, rehold.

-- Row by row: `reserved` units are no longer held, `actual` units are used. `how[n]` as reserve left
-- it: 0 = nothing was taken, a quota's period, a hold's token, else 1. `only` (nil = all) names the
-- algorithm to move. What is taken of money that is not seeded yet is put into `early`.
local function move(spec, reserved, actual, how, epoch, only, early)
  local scopes, ends, names, kinds, capacities, rates, dims = unpack(spec)
  local from = 1
  for s = 1, #scopes do
    local asked, rows = {}, {}
    for n = from, ends[s] do
      local moves = how[n] ~= 0 and (not only or kinds[n] == only)
      if kinds[n] == 'bucket' then moves = moves and reserved[n] ~= actual[n] end
      if moves then asked[#asked + 1], rows[#rows + 1] = names[n], n end
    end
    if #rows > 0 then
      local found = redis.call('HMGET', prefix .. 's:' .. scopes[s], '~', unpack(asked))
      local fields, keep_ms = {}, 0
      for i, n in ipairs(rows) do
        local raw, kind = found[i + 1], kinds[n]
        local value, lasts_ms
        if kind == 'bucket' then
          -- Under the figures the bucket has; absent: full, under the row's.
          local capacity, rate = capacities[n], rates[n]
          local level = capacity * TICKS
          if raw then
            local at_ms
            level, at_ms, capacity, rate = struct.unpack(BUCKET, raw)
            level = flowed(level, at_ms, capacity, rate)
          end
          level = math.min(capacity * TICKS, level + (reserved[n] - actual[n]) * TICKS)
          value = struct.pack(BUCKET, level, now_ms, capacity, rate)
          lasts_ms = bucket_keep_ms(reset_ms(level, capacity, rate), rate)
        elseif kind == 'quota' then
          local money = dims[n] == 'money'
          local tally = tally_of(raw, epoch, money)
          local slot = slot_of(tally, how[n])
          if not slot and reserved[n] == 0 then slot = begin_slot(tally, how[n]) end
          if slot then -- else the period is long over
            tally[slot + 1] = tally[slot + 1] + actual[n]
            tally[slot + 2] = math.max(0, tally[slot + 2] - reserved[n])
            value, lasts_ms = cmsgpack.pack(tally), 40 * DAY_MS
            if money and tally[8] ~= 1 and early then
              for _, part in ipairs({scopes[s], names[n], how[n], actual[n]}) do
                early[#early + 1] = part
              end
            end
          end
        elseif kind == 'balance' then
          local purse = purse_of(raw, epoch)
          purse[1] = purse[1] - actual[n]
          purse[2] = math.max(0, purse[2] - reserved[n])
          value, lasts_ms = cmsgpack.pack(purse), LONGEST_MS
          if purse[4] ~= 1 and early then
            for _, part in ipairs({scopes[s], names[n], '', actual[n]}) do
              early[#early + 1] = part
            end
          end
        elseif raw then
          local list = cmsgpack.unpack(raw)
          for at = 4, #list, 3 do
            if list[1] == epoch and list[at] == how[n] then
              list[at - 1] = list[at - 1] - reserved[n]
              if list[at - 1] <= 0 then
                for _ = 1, 3 do table.remove(list, at - 2) end
              end
              value, lasts_ms = cmsgpack.pack(list), DAY_MS
              break
            end
          end
        end
        if value then
          fields[#fields + 1], fields[#fields + 2] = names[n], value
          keep_ms = math.max(keep_ms, lasts_ms)
        end
      end
      write(scopes[s], fields, keep_ms, found[1])
    end
    from = ends[s] + 1
  end
end

local function zeros(count)
  local list = {}
  for n = 1, count do list[n] = 0 end
  return list
end
