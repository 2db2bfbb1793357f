defmodule Integration.ClonedRepo do
  @moduledoc "The repo of the tests on clones: one instance a test, beside that of an application."
  use Ecto.Repo, otp_app: :integration, adapter: Ecto.Adapters.Postgres
end
