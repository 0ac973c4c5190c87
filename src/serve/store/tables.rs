//! The tables of the index, read (`Snapshot`) and written (`Tx`).

use redb::{Database, ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::files::{DataFiles, NewFile};
use super::records::{
    BucketRecord, Extent, ObjectRecord, PartRecord, Place, SMALL_BIT, UploadRecord, ZEROS, decode_extents,
    encode_extents, merge, slice_few, slice_row,
};
use super::{Result, Stored};
use crate::serve::error::ApiError;

/// Bucket by name.
pub const BUCKETS: TableDefinition<&str, &[u8]> = TableDefinition::new("buckets");
/// Object by bucket and key.
pub const OBJECTS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("objects");
/// Upload by bucket, key and ID.
pub const UPLOADS: TableDefinition<(&str, &str, &str), &[u8]> = TableDefinition::new("uploads");
/// Part by upload ID and number.
pub const PARTS: TableDefinition<(&str, u32), &[u8]> = TableDefinition::new("parts");
/// Long lists of extents by number.
pub const EXTENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("extents");
/// Small contents by number.
pub const SMALL: TableDefinition<u64, &[u8]> = TableDefinition::new("small");
/// References by number.
pub const REFS: TableDefinition<u64, u64> = TableDefinition::new("refs");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// More extents than this go to the table `extents`, so that a list page or a HEAD does not read them.
const FEW_MAX: usize = 4;

fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T> {
    serde_json::from_slice(row).map_err(|error| ApiError::internal(format!("damaged index row: {error}")))
}

/// Makes the tables that are missing and counts this start.
pub fn begin_generation(database: &Database) -> std::result::Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let generation = {
        transaction.open_table(BUCKETS)?;
        transaction.open_table(OBJECTS)?;
        transaction.open_table(UPLOADS)?;
        transaction.open_table(PARTS)?;
        transaction.open_table(EXTENTS)?;
        transaction.open_table(SMALL)?;
        transaction.open_table(REFS)?;
        let mut meta = transaction.open_table(META)?;
        let generation = meta.get("generation")?.map_or(0, |row| row.value()) + 1;
        meta.insert("generation", generation)?;
        generation
    };
    transaction.commit()?;
    Ok(generation)
}

/// The index at one moment.
pub struct Snapshot {
    transaction: ReadTransaction,
}

type ReadTable<K, V> = redb::ReadOnlyTable<K, V>;

impl Snapshot {
    /// Of `transaction`.
    pub fn new(transaction: ReadTransaction) -> Result<Self> {
        Ok(Self { transaction })
    }

    /// A table, for iteration.
    pub fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        definition: TableDefinition<K, V>,
    ) -> Result<ReadTable<K, V>> {
        self.transaction.open_table(definition).map_err(ApiError::internal)
    }

    /// Of all buckets.
    pub fn buckets(&self) -> Result<Vec<(String, BucketRecord)>> {
        let mut buckets = Vec::new();
        for row in self.table(BUCKETS)?.iter().map_err(ApiError::internal)? {
            let (name, record) = row.map_err(ApiError::internal)?;
            buckets.push((name.value().to_owned(), decode(record.value())?));
        }
        Ok(buckets)
    }

    /// The bucket, or `NoSuchBucket`.
    pub fn bucket(&self, bucket: &str) -> Result<BucketRecord> {
        get_bucket(&self.table(BUCKETS)?, bucket)?.ok_or_else(ApiError::no_such_bucket)
    }

    /// The object; `NoSuchKey` or `NoSuchBucket`.
    pub fn object(&self, bucket: &str, key: &str) -> Result<ObjectRecord> {
        match get_object(&self.table(OBJECTS)?, bucket, key)? {
            Some(record) => Ok(record),
            None => self.bucket(bucket).and(Err(ApiError::no_such_key())),
        }
    }

    /// The upload, or `NoSuchUpload`.
    pub fn upload(&self, bucket: &str, key: &str, upload_id: &str) -> Result<UploadRecord> {
        match get_upload(&self.table(UPLOADS)?, bucket, key, upload_id)? {
            Some(record) => Ok(record),
            None => self.bucket(bucket).and(Err(ApiError::no_such_upload())),
        }
    }

    /// The bytes of a row of the table `small`.
    pub fn small(&self, number: u64) -> std::io::Result<bytes::Bytes> {
        let table = self.table(SMALL).map_err(std::io::Error::other)?;
        let row = table.get(number).map_err(std::io::Error::other)?;
        let row = row.ok_or_else(|| std::io::Error::other(format!("small content {number} is missing")))?;
        Ok(bytes::Bytes::copy_from_slice(row.value()))
    }

    /// The extents of `start..end` of a content.
    pub fn extents(&self, place: &Place, start: u64, end: u64) -> Result<Vec<Extent>> {
        match place {
            Place::Few(extents) => Ok(slice_few(extents, start, end)),
            Place::Row(number) => {
                let table = self.table(EXTENTS)?;
                let row = table.get(number).map_err(ApiError::internal)?;
                let row = row.ok_or_else(|| ApiError::internal(format!("extents {number} are missing")))?;
                Ok(slice_row(row.value(), start, end))
            }
        }
    }
}

fn get_bucket(table: &impl ReadableTable<&'static str, &'static [u8]>, bucket: &str) -> Result<Option<BucketRecord>> {
    table.get(bucket).map_err(ApiError::internal)?.map(|row| decode(row.value())).transpose()
}

fn get_object(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    bucket: &str,
    key: &str,
) -> Result<Option<ObjectRecord>> {
    table.get((bucket, key)).map_err(ApiError::internal)?.map(|row| decode(row.value())).transpose()
}

fn get_upload(
    table: &impl ReadableTable<(&'static str, &'static str, &'static str), &'static [u8]>,
    bucket: &str,
    key: &str,
    upload_id: &str,
) -> Result<Option<UploadRecord>> {
    table.get((bucket, key, upload_id)).map_err(ApiError::internal)?.map(|row| decode(row.value())).transpose()
}

/// What is to be done after the commit.
pub struct TxEnd {
    /// New files that the index names now.
    pub kept: Vec<NewFile>,
    /// Files that it no longer names.
    pub dead: Vec<u64>,
}

/// A transaction that writes.
pub struct Tx<'t> {
    /// See [`BUCKETS`].
    pub buckets: Table<'t, &'static str, &'static [u8]>,
    /// See [`OBJECTS`].
    pub objects: Table<'t, (&'static str, &'static str), &'static [u8]>,
    /// See [`UPLOADS`].
    pub uploads: Table<'t, (&'static str, &'static str, &'static str), &'static [u8]>,
    /// See [`PARTS`].
    pub parts: Table<'t, (&'static str, u32), &'static [u8]>,
    extents: Table<'t, u64, &'static [u8]>,
    small: Table<'t, u64, &'static [u8]>,
    refs: Table<'t, u64, u64>,
    files: &'t DataFiles,
    end: TxEnd,
    failure: Option<ApiError>,
}

impl<'t> Tx<'t> {
    /// Opens the tables.
    pub fn open(transaction: &'t WriteTransaction, files: &'t DataFiles) -> Result<Self> {
        let open = || -> std::result::Result<Self, redb::TableError> {
            Ok(Self {
                buckets: transaction.open_table(BUCKETS)?,
                objects: transaction.open_table(OBJECTS)?,
                uploads: transaction.open_table(UPLOADS)?,
                parts: transaction.open_table(PARTS)?,
                extents: transaction.open_table(EXTENTS)?,
                small: transaction.open_table(SMALL)?,
                refs: transaction.open_table(REFS)?,
                files,
                end: TxEnd { kept: Vec::new(), dead: Vec::new() },
                failure: None,
            })
        };
        open().map_err(ApiError::internal)
    }

    /// What to do after the commit; the first failure of the disk, if there was one: then nothing may be committed.
    pub fn finish(self) -> Result<TxEnd> {
        match self.failure {
            None => Ok(self.end),
            Some(failure) => Err(failure),
        }
    }

    /// Notes a failure that may have come between two changes: the whole transaction is given up.
    fn note<T, E: std::fmt::Display>(&mut self, result: std::result::Result<T, E>) -> Result<T> {
        result.map_err(|error| {
            let error = ApiError::internal(error);
            self.failure.get_or_insert(error.clone());
            error
        })
    }

    /// The bucket, or `NoSuchBucket`.
    pub fn bucket(&self, bucket: &str) -> Result<BucketRecord> {
        get_bucket(&self.buckets, bucket)?.ok_or_else(ApiError::no_such_bucket)
    }

    /// Makes or replaces a bucket.
    pub fn put_bucket(&mut self, bucket: &str, record: &BucketRecord) -> Result<()> {
        let row = self.encode(record)?;
        let result = self.buckets.insert(bucket, row.as_slice()).map(drop);
        self.note(result)
    }

    /// The object, if there is one.
    pub fn object(&self, bucket: &str, key: &str) -> Result<Option<ObjectRecord>> {
        get_object(&self.objects, bucket, key)
    }

    /// The upload, or `NoSuchUpload`.
    pub fn upload(&self, bucket: &str, key: &str, upload_id: &str) -> Result<UploadRecord> {
        match get_upload(&self.uploads, bucket, key, upload_id)? {
            Some(record) => Ok(record),
            None => self.bucket(bucket).and(Err(ApiError::no_such_upload())),
        }
    }

    /// The part, if it was uploaded.
    pub fn part(&self, upload_id: &str, number: u32) -> Result<Option<PartRecord>> {
        let row = self.parts.get((upload_id, number)).map_err(ApiError::internal)?;
        row.map(|row| decode(row.value())).transpose()
    }

    fn encode(&mut self, record: &impl Serialize) -> Result<Vec<u8>> {
        let result = serde_json::to_vec(record);
        self.note(result)
    }

    /// Puts an object in the place of the present one, whose bytes are let go.
    pub fn put_object(&mut self, bucket: &str, key: &str, record: &ObjectRecord) -> Result<()> {
        let row = self.encode(record)?;
        let old = self.objects.insert((bucket, key), row.as_slice()).map(|old| old.map(|row| row.value().to_vec()));
        match self.note(old)? {
            Some(old) => {
                let old: Result<ObjectRecord> = decode(&old);
                let old = self.note(old)?;
                self.release(&old.place)
            }
            None => Ok(()),
        }
    }

    /// Takes an object away and lets its bytes go. `false`: there was none.
    pub fn remove_object(&mut self, bucket: &str, key: &str) -> Result<bool> {
        let old = self.objects.remove((bucket, key)).map(|old| old.map(|row| row.value().to_vec()));
        let Some(old) = self.note(old)? else { return Ok(false) };
        let old: Result<ObjectRecord> = decode(&old);
        let old = self.note(old)?;
        self.release(&old.place)?;
        Ok(true)
    }

    /// Begins an upload.
    pub fn put_upload(&mut self, bucket: &str, key: &str, upload_id: &str, record: &UploadRecord) -> Result<()> {
        let row = self.encode(record)?;
        let result = self.uploads.insert((bucket, key, upload_id), row.as_slice()).map(drop);
        self.note(result)
    }

    /// Puts a part in the place of the one of that number, whose bytes are let go.
    pub fn put_part(&mut self, upload_id: &str, number: u32, record: &PartRecord) -> Result<()> {
        let row = self.encode(record)?;
        let old = self.parts.insert((upload_id, number), row.as_slice()).map(|old| old.map(|row| row.value().to_vec()));
        match self.note(old)? {
            Some(old) => {
                let old: Result<PartRecord> = decode(&old);
                let old = self.note(old)?;
                self.release(&old.place)
            }
            None => Ok(()),
        }
    }

    /// Ends an upload: it and its parts go, their bytes are let go.
    pub fn remove_upload(&mut self, bucket: &str, key: &str, upload_id: &str) -> Result<()> {
        let gone = self.uploads.remove((bucket, key, upload_id)).map(drop);
        self.note(gone)?;
        let rows: std::result::Result<Vec<Vec<u8>>, redb::StorageError> = self
            .parts
            .extract_from_if((upload_id, 0)..=(upload_id, u32::MAX), |_, _| true)
            .and_then(|rows| rows.map(|row| row.map(|(_, row)| row.value().to_vec())).collect());
        for row in self.note(rows)? {
            let part: Result<PartRecord> = decode(&row);
            let part = self.note(part)?;
            self.release(&part.place)?;
        }
        Ok(())
    }

    /// Takes received bytes into the index. The reference belongs to whoever puts the place into a record.
    pub fn adopt(&mut self, stored: Stored) -> Result<Place> {
        let extent = match stored {
            Stored::Nothing | Stored::Zeros(0) => return Ok(Place::Few(Vec::new())),
            Stored::Zeros(len) => Extent { file: ZEROS, at: 0, len },
            Stored::Small(bytes) => {
                let number = self.files.number() | SMALL_BIT;
                let result = self.small.insert(number, bytes.as_slice()).map(drop);
                self.note(result)?;
                Extent { file: number, at: 0, len: bytes.len() as u64 }
            }
            Stored::File(file, len) => {
                let number = file.number;
                self.end.kept.push(file);
                Extent { file: number, at: 0, len }
            }
        };
        self.retain_number(extent.file)?;
        Ok(Place::Few(vec![extent]))
    }

    /// All extents of a content.
    pub fn extents_of(&self, place: &Place) -> Result<Vec<Extent>> {
        match place {
            Place::Few(extents) => Ok(extents.clone()),
            Place::Row(number) => {
                let row = self.extents.get(number).map_err(ApiError::internal)?;
                let row = row.ok_or_else(|| ApiError::internal(format!("extents {number} are missing")))?;
                Ok(decode_extents(row.value()))
            }
        }
    }

    /// The extents of `start..end` of a content.
    pub fn extents_in(&self, place: &Place, start: u64, end: u64) -> Result<Vec<Extent>> {
        match place {
            Place::Few(extents) => Ok(slice_few(extents, start, end)),
            Place::Row(number) => {
                let row = self.extents.get(number).map_err(ApiError::internal)?;
                let row = row.ok_or_else(|| ApiError::internal(format!("extents {number} are missing")))?;
                Ok(slice_row(row.value(), start, end))
            }
        }
    }

    /// A new content made of `extents`, with references of its own.
    pub fn compose(&mut self, extents: Vec<Extent>) -> Result<Place> {
        let extents = merge(extents);
        for extent in &extents {
            self.retain_number(extent.file)?;
        }
        if extents.len() <= FEW_MAX {
            return Ok(Place::Few(extents));
        }
        let number = self.files.number();
        let result = self.extents.insert(number, encode_extents(&extents).as_slice()).map(drop);
        self.note(result)?;
        self.retain_number(number)?;
        Ok(Place::Row(number))
    }

    /// One more reference on a content.
    pub fn retain(&mut self, place: &Place) -> Result<()> {
        match place {
            Place::Few(extents) => extents.iter().try_for_each(|extent| self.retain_number(extent.file)),
            Place::Row(number) => self.retain_number(*number),
        }
    }

    /// One reference less; what has none left goes.
    pub fn release(&mut self, place: &Place) -> Result<()> {
        match place {
            Place::Few(extents) => extents.iter().try_for_each(|extent| self.release_file(extent.file)),
            Place::Row(number) => {
                if !self.release_number(*number)? {
                    return Ok(());
                }
                let row = self.extents.remove(number).map(|row| row.map(|row| decode_extents(row.value())));
                let extents = self.note(row)?.unwrap_or_default();
                extents.iter().try_for_each(|extent| self.release_file(extent.file))
            }
        }
    }

    fn retain_number(&mut self, number: u64) -> Result<()> {
        if number == ZEROS {
            return Ok(());
        }
        let count = self.refs.get(number).map(|row| row.map_or(0, |row| row.value()));
        let count = self.note(count)?;
        let result = self.refs.insert(number, count + 1).map(drop);
        self.note(result)
    }

    /// Whether that was the last reference.
    fn release_number(&mut self, number: u64) -> Result<bool> {
        let count = self.refs.get(number).map(|row| row.map_or(0, |row| row.value()));
        let count = self.note(count)?;
        let result =
            if count > 1 { self.refs.insert(number, count - 1).map(drop) } else { self.refs.remove(number).map(drop) };
        self.note(result)?;
        Ok(count <= 1)
    }

    fn release_file(&mut self, number: u64) -> Result<()> {
        if number == ZEROS || !self.release_number(number)? {
            return Ok(());
        }
        if number & SMALL_BIT == 0 {
            self.end.dead.push(number);
            return Ok(());
        }
        let result = self.small.remove(number).map(drop);
        self.note(result)
    }
}
