-- An open reservation is held again under this epoch, whatever the levels say; once.
-- Keys: epoch, reservation, leases, scopes. Arguments: nonce, epoch meant, owner, ttl_ms, spec, amounts.
-- Reply: {now_ms, 1, or 0 when of another epoch or ended}.

local function rehold(keys, args)
  begin(keys[1])
  local found = call('MGET', spread(keys))
  local epoch = the_epoch(found[1], args[1])
  if epoch ~= args[2] then return {now_ms, 0} end
  local owner, packed, counts, known, base = args[3], args[5], args[6], false, 3
  local rows, shows, spec = '', nil, nil
  if found[2] then
    local state, held_epoch, first_rows, _, _, first_shows, held_spec, held_amounts =
      recorded(found[2])
    if state ~= HELD and state ~= EXPIRED then return {now_ms, 0} end
    if held_epoch == epoch then return {now_ms, 1} end
    -- The data outlived its epoch: its rates were charged then, with this reservation.
    rows, shows, packed, counts, known = first_rows, first_shows, held_spec, held_amounts, true
  end

  spec = spec_of(packed)
  local leases = leases_of(found[3])
  if known then found, base = fetch(spec), 0 end
  local amounts, lives, number = {numbers(spec.amounts, counts)}, leases.lives, number_of(leases, owner)
  judge(spec, found, base, amounts, epoch, number, lives)
  local holds, gone = false, nil
  for s, scope in ipairs(spec.scopes) do
    local values, places, writes = opened[s], placed[s], changed[s]
    if unseated[s] then
      gone = gone or {}
      values, places = seat(s, spec, amounts, number, lives, gone)
    end
    for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
      local kind, amount, at = spec.kinds[n], amounts[n], places[n]
      if kind == 'bucket' then
        if amount > 0 and not known then
          levels[n] = levels[n] - amount * TICKS
          values[at], values[at + 1], writes = levels[n], now_ms, true
        end
      elseif amount > 0 and kind == 'concurrency' then
        values[seats[n] + 1] = values[seats[n] + 1] + amount
        levels[n], holds, writes = levels[n] - amount, true, true
      elseif amount > 0 and kind == 'balance' then
        values[at + 1], writes = values[at + 1] + amount, true
        if values[at + 2] == 1 then levels[n] = levels[n] - amount end
      elseif amount > 0 and chosen[n] then
        local slot, money = begin_slot(values, at, chosen[n]), spec.dims[n] == 'money'
        if known and not money then -- what it held was taken as used when the epoch began
          values[slot + 1] = math.max(0, values[slot + 1] - amount)
        end
        values[slot + 2], writes = values[slot + 2] + amount, true
        if not money or values[at + 6] == 1 then levels[n] = levels[n] - amount end
      end
      tell(n, kind, levels[n], spec.full[n], spec.rates[n])
    end
    if writes then close(s, prefix .. 's:' .. scope, LONGEST_MS) end
  end

  if holds then keep_lease(leases, owner, number, gone and next(gone) and gone) end
  call('SET', keys[2],
    record(HELD, epoch, rows, '', holds and number or 0, shows or pack_told(spec), packed, counts,
      pack_chosen(spec)),
    'PX', args[4])
  return {now_ms, 1}
end
