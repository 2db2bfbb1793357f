for n <- 1..4 do
  defmodule Module.concat(Integration, "Sandbox#{n}Test") do
    @moduledoc "Async tests on one shared server, in sandbox transactions that are rolled back."
    use ExUnit.Case, async: true

    alias Ecto.Adapters.SQL.Sandbox
    alias Integration.{Account, SandboxRepo}

    @moduletag mode: :shared

    setup do
      :ok = Sandbox.checkout(SandboxRepo)
    end

    for test <- 1..5 do
      test "module #{n}, test #{test} sees only its own rows" do
        for count <- 1..20 do
          email = "#{count}-#{unquote(test)}-#{unquote(n)}@example.com"
          SandboxRepo.insert!(Account.changeset(%Account{}, %{email: email}))
          assert SandboxRepo.aggregate(Account, :count) == count
        end
      end
    end

    test "module #{n} lets other processes into its transaction" do
      SandboxRepo.insert!(Account.changeset(%Account{}, %{email: "#{unquote(n)}@example.com"}))
      task = Task.async(fn -> SandboxRepo.aggregate(Account, :count) end)
      assert Task.await(task) == 1
    end
  end
end
