defmodule Integration.Repo.Migrations.CreatePosts do
  use Ecto.Migration

  def change do
    create table(:posts) do
      add(:title, :string, null: false)
      add(:tags, {:array, :string}, null: false)
      add(:account_id, references(:accounts), null: false)
      timestamps()
    end

    create(index(:posts, [:account_id]))
    create(constraint(:posts, :title_is_not_blank, check: "title <> ''"))
  end
end
