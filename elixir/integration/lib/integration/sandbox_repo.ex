defmodule Integration.SandboxRepo do
  @moduledoc "The repo of the sandbox tests."
  use Ecto.Repo, otp_app: :integration, adapter: Ecto.Adapters.Postgres
end
