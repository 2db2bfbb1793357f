defmodule Integration.EctoTest do
  @moduledoc "Ecto against a shared server, from `mix ecto.create` on, with default settings."
  # The repo and its configuration are the VM's.
  use ExUnit.Case, async: false

  import Ecto.Query

  alias Ecto.Changeset
  alias Integration.{Account, Post, Repo}

  @moduletag mode: :shared

  setup_all do
    server = start_supervised!({PgliteEx, mode: :shared})
    options = PgliteEx.connection_opts(server, database: "integration_test", pool_size: 5)
    Application.put_env(:integration, Repo, options)

    Mix.Task.rerun("ecto.create", ["--quiet"])
    Mix.Task.rerun("ecto.migrate", ["--quiet"])
    start_supervised!(Repo)
    %{server: server}
  end

  setup do
    on_exit(fn -> Repo.query!("truncate accounts, posts") end)
  end

  test "mix ecto.migrate has run every migration, also the one without a transaction" do
    assert %{rows: [[3]]} = Repo.query!("select count(*) from schema_migrations")

    assert %{rows: [[true]]} =
             Repo.query!(
               "select indisvalid from pg_index where indexrelid = 'posts_tags_index'::regclass"
             )
  end

  test "mix ecto.rollback and mix ecto.migrate go back and forth" do
    Mix.Task.rerun("ecto.rollback", ["--all", "--quiet"])
    assert %{rows: [[nil]]} = Repo.query!("select to_regclass('accounts')::text")
    Mix.Task.rerun("ecto.migrate", ["--quiet"])
    assert %{rows: [["accounts"]]} = Repo.query!("select to_regclass('accounts')::text")
  end

  test "a schema's values come back as they were" do
    account = insert_account!("a@example.com", balance: "12.50", settings: %{"theme" => ["dark"]})

    post =
      Repo.insert!(
        Post.changeset(%Post{}, %{title: "Grüße", tags: ["a", "b"], account_id: account.id})
      )

    assert %Account{settings: %{"theme" => ["dark"]}, posts: [loaded]} =
             found = Account |> Repo.get_by!(email: "a@example.com") |> Repo.preload(:posts)

    assert Decimal.equal?(found.balance, "12.50")
    assert found.inserted_at == account.inserted_at
    assert {loaded.title, loaded.tags} == {post.title, ["a", "b"]}
  end

  test "a unique index becomes an error of the changeset" do
    insert_account!("taken@example.com")

    assert {:error, changeset} =
             Repo.insert(Account.changeset(%Account{}, %{email: "taken@example.com"}))

    assert {"has already been taken", _} = changeset.errors[:email]
  end

  test "a citext column knows no upper and lower case" do
    account = insert_account!("Jane@example.com")
    assert Repo.get_by!(Account, email: "jane@EXAMPLE.com").id == account.id

    assert {:error, changeset} =
             Repo.insert(Account.changeset(%Account{}, %{email: "JANE@example.com"}))

    assert {"has already been taken", _} = changeset.errors[:email]
  end

  test "a foreign key becomes an error of the changeset" do
    changeset = Post.changeset(%Post{}, %{title: "orphan", account_id: 0})

    assert {:error, %Changeset{errors: [account_id: {"does not exist", _}]}} =
             Repo.insert(changeset)
  end

  test "a check constraint becomes an error of the changeset" do
    account = insert_account!("c@example.com")

    changeset =
      %Post{title: "", account_id: account.id}
      |> Changeset.change()
      |> Changeset.check_constraint(:title, name: :title_is_not_blank)

    assert {:error, %Changeset{errors: [title: {"is invalid", _}]}} = Repo.insert(changeset)
  end

  test "an upsert replaces" do
    insert_account!("u@example.com", balance: "1")

    Repo.insert!(
      Account.changeset(%Account{}, %{email: "u@example.com", balance: "2"}),
      on_conflict: {:replace, [:balance]},
      conflict_target: :email
    )

    assert Repo.one!(from(a in Account, select: a.balance)) |> Decimal.equal?(2)
  end

  test "a transaction that is rolled back leaves nothing" do
    assert {:error, :changed_my_mind} =
             Repo.transaction(fn ->
               insert_account!("gone@example.com")
               Repo.rollback(:changed_my_mind)
             end)

    refute Repo.exists?(Account)
  end

  test "an error in a transaction ends it, and the connection goes on" do
    assert_raise Postgrex.Error, fn ->
      Repo.transaction(fn -> Repo.query!("select 1/0") end)
    end

    assert %{rows: [[1]]} = Repo.query!("select 1")
  end

  test "Ecto.Multi runs all or nothing" do
    multi =
      Ecto.Multi.new()
      |> Ecto.Multi.insert(:account, Account.changeset(%Account{}, %{email: "m@example.com"}))
      |> Ecto.Multi.insert(:post, fn _ ->
        Post.changeset(%Post{}, %{title: "orphan", account_id: 0})
      end)

    assert {:error, :post, %Changeset{}, %{account: %Account{}}} = Repo.transaction(multi)
    refute Repo.exists?(Account)
  end

  test "a stream reads many rows in chunks" do
    now = NaiveDateTime.truncate(NaiveDateTime.utc_now(), :second)

    rows =
      for n <- 1..5_000 do
        %{email: "#{n}@example.com", balance: n, settings: %{}, inserted_at: now, updated_at: now}
      end

    {5_000, nil} = Repo.insert_all(Account, rows)

    {:ok, sum} =
      Repo.transaction(fn ->
        from(a in Account, select: a.balance)
        |> Repo.stream(max_rows: 100)
        |> Enum.reduce(0, &Decimal.add/2)
      end)

    assert Decimal.equal?(sum, div(5_000 * 5_001, 2))
  end

  test "a lock makes others wait" do
    account = insert_account!("locked@example.com", balance: "0")

    1..10
    |> Enum.map(fn _ ->
      Task.async(fn ->
        Repo.transaction(fn ->
          locked = Repo.one!(from(a in Account, where: a.id == ^account.id, lock: "FOR UPDATE"))
          Repo.update!(Changeset.change(locked, balance: Decimal.add(locked.balance, 1)))
        end)
      end)
    end)
    |> Task.await_many(30_000)

    assert Decimal.equal?(Repo.get!(Account, account.id).balance, 10)
  end

  defp insert_account!(email, attributes \\ []) do
    Repo.insert!(Account.changeset(%Account{}, Map.new([{:email, email} | attributes])))
  end
end
