defmodule PgliteEx.SessionTest do
  use ExUnit.Case, async: true

  doctest PgliteEx.Session
end
