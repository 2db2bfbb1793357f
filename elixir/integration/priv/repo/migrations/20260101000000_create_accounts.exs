defmodule Integration.Repo.Migrations.CreateAccounts do
  use Ecto.Migration

  def change do
    # As the generators of many applications do it.
    execute("CREATE EXTENSION IF NOT EXISTS citext", "")

    create table(:accounts) do
      add(:email, :citext, null: false)
      add(:balance, :decimal, null: false)
      add(:settings, :map, null: false)
      timestamps()
    end

    create(unique_index(:accounts, [:email]))
  end
end
