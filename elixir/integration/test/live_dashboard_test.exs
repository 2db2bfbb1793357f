if Code.ensure_loaded?(Phoenix.LiveDashboard.Router) do
  defmodule Integration.PostgresPage do
    @moduledoc "As in the documentation of `PgliteEx.LiveDashboard`."
    use PgliteEx.LiveDashboard
  end

  defmodule Integration.DashboardRouter do
    use Phoenix.Router
    import Phoenix.LiveDashboard.Router

    pipeline :browser do
      plug(:fetch_session)
    end

    scope "/" do
      pipe_through(:browser)

      live_dashboard("/dashboard",
        additional_pages: [postgres: {Integration.PostgresPage, server: Integration.Watched}]
      )
    end
  end

  defmodule Integration.ErrorView do
    def render(_template, %{reason: reason}), do: raise(reason)
  end

  defmodule Integration.DashboardEndpoint do
    use Phoenix.Endpoint, otp_app: :integration

    plug(Plug.Session, store: :cookie, key: "_live_view_key", signing_salt: "01234567")
    plug(Integration.DashboardRouter)
  end

  defmodule Integration.LiveDashboardTest do
    @moduledoc "The page in a real dashboard."
    use ExUnit.Case, async: false
    import Phoenix.ConnTest
    import Phoenix.LiveViewTest

    @endpoint Integration.DashboardEndpoint

    setup_all do
      Application.put_env(:integration, @endpoint,
        secret_key_base: String.duplicate("a", 64),
        live_view: [signing_salt: "01234567"],
        pubsub_server: Integration.PubSub
      )

      {:ok, _started} = Application.ensure_all_started(:phoenix_live_dashboard)
      start_supervised!({Phoenix.PubSub, name: Integration.PubSub})
      start_supervised!(@endpoint)
      :ok
    end

    test "shows figures, clusters and templates, and a server that is stopped" do
      server = start_supervised!({PgliteEx, name: Integration.Watched})
      {:ok, branch} = PgliteEx.branch(server, name: "a_branch")

      {:ok, _live, page} = live(build_conn(), "/dashboard/postgres?nav=figures")
      assert page =~ "PGlite Integration.Watched"
      assert page =~ "ready" and page =~ "Sessions of the shared cluster"

      {:ok, live, page} = live(build_conn(), "/dashboard/postgres?nav=clusters")
      assert page =~ "a_branch" and page =~ "branch of default"
      # By sessions, most first.
      assert live |> element("th a", "Sessions") |> render_click() =~ "a_branch"
      {:ok, _live, page} = live(build_conn(), "/dashboard/postgres?nav=clusters&search=default")
      assert page =~ "default"
      refute page =~ "a_branch"

      {:ok, _live, page} = live(build_conn(), "/dashboard/postgres?nav=templates")
      assert page =~ "Database"

      PgliteEx.Branch.drop(branch)
      :ok = stop_supervised({PgliteEx, Integration.Watched})
      {:ok, _live, page} = live(build_conn(), "/dashboard/postgres?nav=figures")
      assert page =~ "57P01"
    end
  end
end
