defmodule Integration.BranchRepo do
  @moduledoc "A repo as the guide \"Phoenix without a database server\" has it, in the sandbox of PgliteEx."
  use Ecto.Repo, otp_app: :integration, adapter: Ecto.Adapters.Postgres

  @impl Ecto.Repo
  def init(context, config),
    do: {:ok, PgliteEx.repo_config(Integration.BranchPostgres, context, config)}
end
