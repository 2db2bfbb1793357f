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
