-- An open reservation is held again under this epoch, whatever the levels say; once.
-- Keys: epoch, reservation, leases, scopes. Arguments: nonce, epoch meant, owner, id, ttl_ms, lease_ms,
-- leases_ms, spec, amounts. Reply: {now_ms, 1, or 0 when of another epoch or ended}.

local function rehold(keys, args)
  begin(keys[1])
  local got = call('MGET', keys[1], keys[2], keys[3])
  local epoch = the_epoch(got[1], args[1])
  if epoch ~= args[2] then return {now_ms, 0} end
  local owner, packed, counts, known = args[3], args[8], args[9], false
  local rows, shows = '', nil
  if got[2] then
    local state, held_epoch, _, first_rows, first_shows, held_spec, held_amounts =
      unpacked(got[2])
    if state ~= 'held' and state ~= 'expired' then return {now_ms, 0} end
    if held_epoch == epoch then return {now_ms, 1} end
    -- The data outlived its epoch: its rates were charged then, with this reservation.
    rows, shows, packed, counts, known = first_rows, first_shows, held_spec, held_amounts, true
  end

  local spec = spec_of(packed)
  local amounts, leases = amounts_of(spec, counts), leases_of(got[3])
  local scopes, ends, names, kinds, capacities, rates, dims = unpack(spec, 1, 7)
  local its_keys = {keys[1], keys[2], keys[3]}
  for s = 1, #scopes do its_keys[s + 3] = prefix .. 's:' .. scopes[s] end
  judge(spec, its_keys, amounts, epoch, owner, leases)
  local how, from, holds = {}, 1, false
  for s = 1, #scopes do
    local count = 0
    for n = from, ends[s] do
      local kind, amount, state = kinds[n], amounts[n], kept[n]
      how[n] = kind == 'quota' and (chosen[n] or 0) or kind == 'concurrency' and 0 or 1
      if kind == 'bucket' then
        if (amount > 0 and not known) or state then
          if known then amount = 0 end
          levels[n] = levels[n] - amount * TICKS
          count = put(count, names[n], binary(BUCKET, levels[n], now_ms, capacities[n], rates[n]))
        end
      elseif amount > 0 and kind == 'concurrency' then
        how[n] = take_holds(state, chosen[n], owner, amount, args[4])
        levels[n], holds = levels[n] - amount, true
        count = put(count, names[n], pack(state))
      elseif amount > 0 and kind == 'balance' then
        state[2] = state[2] + amount
        if state[4] == 1 then levels[n] = levels[n] - amount end
        count = put(count, names[n], pack(state))
      elseif amount > 0 and chosen[n] then
        local slot = begin_slot(state, chosen[n])
        if known and dims[n] ~= 'money' then -- what it held was taken as used when the epoch began
          state[slot + 1] = math.max(0, state[slot + 1] - amount)
        end
        state[slot + 2] = state[slot + 2] + amount
        if dims[n] ~= 'money' or state[8] == 1 then levels[n] = levels[n] - amount end
        count = put(count, names[n], pack(state))
      end
      told[2 * n - 1], told[2 * n] = shown(kind, levels[n], capacities[n], rates[n], ends_at[n])
    end
    write(its_keys[s + 3], count, LONGEST_MS, lives[s])
    from = ends[s] + 1
  end

  if holds then keep_lease(leases, owner, tonumber(args[6]), args[7]) end
  call('SET', keys[2],
    pack('held', epoch, owner, rows, shows or pack_told(spec), packed, counts, how),
    'PX', args[5])
  return {now_ms, 1}
end
