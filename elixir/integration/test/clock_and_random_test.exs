defmodule Integration.ClockAndRandomTest do
  @moduledoc "The examples of the guide \"Tests without a sandbox\", with a repo that was just started."
  use PgliteEx.Case, async: true, server: Integration.Clones, repo: Integration.ClonedRepo

  alias Integration.ClonedRepo
  alias PgliteEx.{Clock, Random}

  @moduletag mode: :isolated
  @moduletag :freeze

  test "a trial ends after thirty days", %{pglite_gate: gate} do
    :ok = Clock.freeze(gate, ~U[2024-02-01 12:00:00Z])

    ClonedRepo.query!("""
    create table trials (id serial, began_at timestamptz default now(),
      ends_on date generated always as (((began_at at time zone 'UTC') + interval '30 days')::date) stored)
    """)

    %{rows: [[id, began_at, ends_on]]} =
      ClonedRepo.query!("insert into trials default values returning id, began_at, ends_on")

    assert {began_at, ends_on} == {~U[2024-02-01 12:00:00.000000Z], ~D[2024-03-02]}
    is_over = "select ends_on <= current_date from trials where id = $1"

    :ok = Clock.travel_by(gate, 29, :day)
    assert %{rows: [[false]]} = ClonedRepo.query!(is_over, [id])

    :ok = Clock.travel_by(gate, 1, :day)
    assert %{rows: [[true]]} = ClonedRepo.query!(is_over, [id])

    :ok = Clock.back(gate)
    %{rows: [[now]]} = ClonedRepo.query!("select now()")
    assert abs(DateTime.diff(DateTime.utc_now(), now)) < 60
  end

  for n <- 1..2 do
    test "ids are those of the seed, in clone #{n}", %{pglite_gate: gate} do
      :ok = Random.seed(gate, 42)
      %{rows: [[id, number]]} = ClonedRepo.query!("select gen_random_uuid()::text, random()")
      :ok = Random.seed(gate, 42)

      assert %{rows: [[^id, ^number]]} =
               ClonedRepo.query!("select gen_random_uuid()::text, random()")

      # In every clone, and in every run.
      assert {id, number} == {"d5677100-5d54-4a19-9849-39c9e8d0db2a", 0.7587163689116083}
    end
  end
end
