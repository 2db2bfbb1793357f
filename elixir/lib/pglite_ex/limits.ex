defmodule PgliteEx.Limits do
  @moduledoc """
  Limits of memory and disk, for the program and for its clusters.

  A limit is a number of bytes, or a string with a unit of PostgreSQL's settings: `"512MB"`, `"2GB"`. What would
  exceed it is an error of the statement that needs it, with SQLSTATE `53200` (out of memory) when a session needs
  memory, or `53100` (disk full) when a file is to grow; every other session goes on, and there is room again when
  something is dropped.

    * `:memory_limit` of a server is that of its program. Default: three quarters of the memory that the machine or
      the container has. Its last fifth is for clusters that have little. `"none"` is no limit.
    * `:cluster_memory_limit` and `:cluster_disk_limit` of a server are those of every cluster that has no limit
      of its own. Default: none; for a connection in mode `:isolated`, a quarter of the program's memory.
    * `:memory_limit` and `:disk_limit` of `PgliteEx.branch/2`, `PgliteEx.prepare/4`, `PgliteEx.freeze/3` and
      `PgliteEx.open/2` are those of one branch, of the clones of one template, and of one connection. A branch of a
      branch has the limits of its origin unless it gets others.

  The memory of a cluster is what its sessions have added to that of their template, its files if these are in
  memory, and what its sessions share. Its disk is the length of all of its files, about 40 MB in a new cluster. Both
  are among the figures of `PgliteEx.stats/1` of a branch.
  """

  alias PgliteEx.Frame

  @typedoc "A number of bytes, or a text such as `\"512MB\"`."
  @type size :: pos_integer | String.t()

  @keys [:memory_limit, :disk_limit]

  @doc """
  The keys of the limits of a cluster.

      iex> PgliteEx.Limits.keys()
      [:memory_limit, :disk_limit]
  """
  @spec keys() :: [atom]
  def keys, do: @keys

  @doc """
  The limits among options, as those of a frame. Raises `ArgumentError` for what is no size.

      iex> PgliteEx.Limits.frame_options(memory_limit: "512MB", key: "other")
      [{"memory_limit", "512MB"}]
      iex> PgliteEx.Limits.frame_options(disk_limit: 1_000_000_000)
      [{"disk_limit", "1000000000"}]
  """
  @spec frame_options(keyword) :: Frame.options()
  def frame_options(options) do
    for key <- @keys, size = options[key] do
      unless size?(size) do
        raise ArgumentError,
              "option #{key}: #{inspect(size)} is not allowed; it takes #{allowed()}"
      end

      {Atom.to_string(key), to_string(size)}
    end
  end

  @doc """
  Whether something is a size.

      iex> Enum.map([1_000_000, "2GB", "64 MB", "12345"], &PgliteEx.Limits.size?/1)
      [true, true, true, true]
      iex> Enum.map([0, -1, "2 gb", "", :none], &PgliteEx.Limits.size?/1)
      [false, false, false, false, false]
  """
  @spec size?(term) :: boolean
  def size?(size) when is_integer(size), do: size > 0
  def size?(size) when is_binary(size), do: size =~ ~r/\A\d+ ?(B|kB|MB|GB|TB)?\z/
  def size?(_size), do: false

  @doc "What a limit takes, in words."
  @spec allowed() :: String.t()
  def allowed, do: ~s(a number of bytes, or a string such as "512MB")
end
