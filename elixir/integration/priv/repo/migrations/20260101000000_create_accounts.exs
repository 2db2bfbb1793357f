defmodule Integration.Repo.Migrations.CreateAccounts do
  use Ecto.Migration

  def change do
    create table(:accounts) do
      add :email, :string, null: false
      add :balance, :decimal, null: false
      add :settings, :map, null: false
      timestamps()
    end

    create unique_index(:accounts, [:email])
  end
end
