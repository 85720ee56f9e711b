"""The report: tables, pictures, one page of HTML, and the figures that go into an adapter."""
