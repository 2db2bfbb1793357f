defmodule Integration.Post do
  use Ecto.Schema

  import Ecto.Changeset

  schema "posts" do
    field(:title, :string)
    field(:tags, {:array, :string}, default: [])
    belongs_to(:account, Integration.Account)
    timestamps()
  end

  def changeset(post, attributes) do
    post
    |> cast(attributes, [:title, :tags, :account_id])
    |> validate_required([:title])
    |> foreign_key_constraint(:account_id)
  end
end
