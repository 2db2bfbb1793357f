defmodule Integration.Account do
  use Ecto.Schema

  import Ecto.Changeset

  schema "accounts" do
    field(:email, :string)
    field(:balance, :decimal, default: Decimal.new(0))
    field(:settings, :map, default: %{})
    has_many(:posts, Integration.Post)
    timestamps()
  end

  def changeset(account, attributes) do
    account
    |> cast(attributes, [:email, :balance, :settings])
    |> validate_required([:email])
    |> unique_constraint(:email)
  end
end
