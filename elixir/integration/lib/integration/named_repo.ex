defmodule Integration.NamedRepo do
  @moduledoc "A repo whose server has a name, and whose configuration names another place."
  use Ecto.Repo, otp_app: :integration, adapter: Ecto.Adapters.Postgres

  @impl Ecto.Repo
  def init(context, config),
    do: {:ok, PgliteEx.repo_config(Integration.NamedPostgres, context, config)}
end
