defmodule Integration.Repo.Migrations.IndexPostsConcurrently do
  use Ecto.Migration

  @disable_ddl_transaction true
  @disable_migration_lock true

  def change do
    create(index(:posts, [:tags], using: :gin, concurrently: true))
  end
end
