defmodule Integration.ClonedRepo do
  @moduledoc "The repo of the tests on clones: one instance a test, without a name."
  use Ecto.Repo, otp_app: :integration, adapter: Ecto.Adapters.Postgres
end
