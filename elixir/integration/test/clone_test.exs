for n <- 1..4 do
  defmodule Module.concat(Integration, "Clone#{n}Test") do
    @moduledoc "Async tests on clones, without a sandbox: everyone commits, and nobody sees it."
    use PgliteEx.Case, async: true, server: Integration.Clones, repo: Integration.ClonedRepo

    alias Integration.{Account, ClonedRepo}

    @moduletag mode: :isolated
    @moduletag :freeze

    for test <- 1..5 do
      test "module #{n}, test #{test} has all tables and no rows" do
        for count <- 1..20 do
          {:ok, _} =
            ClonedRepo.transaction(fn ->
              # The same address in every test.
              ClonedRepo.insert!(Account.changeset(%Account{}, %{email: "#{count}@example.com"}))
            end)

          assert ClonedRepo.aggregate(Account, :count) == count
        end
      end
    end
  end
end

defmodule Integration.PoolCaseTest do
  @moduledoc "A branch for each test, with a pool."
  use PgliteEx.Case,
    async: true,
    server: Integration.Clones,
    repo: Integration.ClonedRepo,
    pool_size: 3

  alias Integration.{Account, ClonedRepo}

  @moduletag mode: :isolated
  @moduletag :freeze

  for n <- 1..3 do
    test "test #{n}: tasks that are told about the repo use connections of their own to one database" do
      repo = ClonedRepo.get_dynamic_repo()
      insert = fn n -> Account.changeset(%Account{}, %{email: "#{n}@example.com"}) end
      ClonedRepo.insert!(insert.(0))

      ClonedRepo.transaction(fn ->
        # Not committed, and not seen by the others.
        ClonedRepo.insert!(insert.(1))

        tasks =
          for n <- 2..3 do
            Task.async(fn ->
              ClonedRepo.put_dynamic_repo(repo)
              ClonedRepo.insert!(insert.(n))
              ClonedRepo.aggregate(Account, :count)
            end)
          end

        assert tasks |> Task.await_many(20_000) |> Enum.max() == 3
      end)

      assert ClonedRepo.aggregate(Account, :count) == 4
    end
  end
end
