defmodule Integration.EctoCases do
  @moduledoc "The repos and schemas of the cases of Ecto SQL's own sandbox."

  defmodule TestRepo do
    @moduledoc false
    use Ecto.Repo, otp_app: :ecto_sql, adapter: Ecto.Adapters.Postgres
  end

  defmodule PoolRepo do
    @moduledoc false
    use Ecto.Repo, otp_app: :ecto_sql, adapter: Ecto.Adapters.Postgres
  end

  defmodule User do
    @moduledoc false
    use Ecto.Schema
    schema("users", do: field(:name, :string))
  end

  defmodule Comment do
    @moduledoc false
    use Ecto.Schema

    schema "comments" do
      field(:text, :string)
      field(:post_id, :integer)
    end
  end

  defmodule Post do
    @moduledoc false
    use Ecto.Schema

    schema "posts" do
      field(:title, :string)
      belongs_to(:author, Integration.EctoCases.User)
      has_many(:comments, Integration.EctoCases.Comment)
    end
  end

  @doc "Starts the repos on a server, in a database of their own."
  def start!(server) do
    opts = PgliteEx.connection_opts(server, database: "ecto_cases", pool_size: 5)
    :ok = Ecto.Adapters.Postgres.storage_up(opts)
    sandbox = PgliteEx.connection_opts(server, opts ++ [pool: PgliteEx.Sandbox])
    # The cases start a further repo with these.
    Application.put_env(:ecto_sql, TestRepo, sandbox)
    {:ok, _repo} = TestRepo.start_link(sandbox)
    {:ok, _repo} = PoolRepo.start_link(opts)

    for table <- [
          "users (id bigserial primary key, name text)",
          "posts (id bigserial primary key, title text, author_id bigint)",
          "comments (id bigserial primary key, text text, post_id bigint)"
        ],
        do: TestRepo.query!("create table " <> table)

    PgliteEx.Sandbox.mode(TestRepo, :manual)
  end
end
